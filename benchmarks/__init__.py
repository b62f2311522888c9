"""Programs that a person runs: `script/demo` and `script/bench`. README.md says what their figures mean."""
