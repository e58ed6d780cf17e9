"""The tests, grouped as the product is; `conftest.py` has the backends on which they run."""
