"""Training as a service: adapters of many clients over one base model, trained together and kept in a workdir."""
