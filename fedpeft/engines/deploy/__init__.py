"""Both ends of a federation on real devices: Flower's deployment runtime with keys, certificates and a registry."""
