"""Run jobs in tests: on the real store, in this process, with a clock that the test moves."""
