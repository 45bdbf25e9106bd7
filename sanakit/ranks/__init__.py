"""What several ranks of one run do together: they share work, and say it in one voice when one of them is lost."""
