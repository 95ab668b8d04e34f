"""Which subnet answers: from the budgets of a request, and what waits, to an arch."""
