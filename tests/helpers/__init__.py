"""What several test packages share: builders with defaults, and a fleet of modelled instances in virtual time."""
