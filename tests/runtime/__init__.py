"""The live body in virtual time: the driver with modelled instances, and what it is made of."""
