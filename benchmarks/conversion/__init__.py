"""The best conversion per trained token: arms, budgets, seeds, bases. `python -m benchmarks.conversion`."""
