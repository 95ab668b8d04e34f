"""What runs subnets: a version of a bundle with its sessions, on a runtime."""
