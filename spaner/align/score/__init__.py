"""Numbers from fitted methods and tables: pure functions, and the evaluation that calls them."""
