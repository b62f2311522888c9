#!/bin/sh
# LocalStack runs this at every start, when it is ready: the bucket, closed to everybody without a signature.
set -eu
bucket=${BUCKET:-fleek-media}
if ! awslocal s3api head-bucket --bucket "$bucket" >/dev/null 2>&1; then
    awslocal s3api create-bucket --bucket "$bucket" >/dev/null
fi
awslocal s3api put-public-access-block --bucket "$bucket" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
echo "The bucket $bucket is ready"
