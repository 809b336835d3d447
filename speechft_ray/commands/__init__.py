"""Layer 5: what each verb of the command line does, with the parts wired together."""
