"""Fixtures for every test: real servers, each from a wheel."""

pytest_plugins = ["tests.servers", "tests.s3", "tests.localstack"]
