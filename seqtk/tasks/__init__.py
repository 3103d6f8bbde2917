"""Where data, model, criterion and metric meet."""
