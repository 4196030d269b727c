"""Hand-made changes of the product that the tests must notice: what they are, how to try them, and the table."""
