"""Tables, figures and pages from the results in the store. Imports no torch, no Ray, no MLflow."""
