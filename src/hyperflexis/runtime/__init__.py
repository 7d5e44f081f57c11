"""The live body: feeds the control plane what happens and performs what it decides, on one event loop."""
