"""Notes with Django and Tenure: words are counted by tasks."""
