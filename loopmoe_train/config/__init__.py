"""The run configuration: schema, cross-field rules, composition, run.yaml."""
