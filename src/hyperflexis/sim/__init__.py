"""The virtual body: traces in, modelled instances, a virtual clock, and the same core as live."""
