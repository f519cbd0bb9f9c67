"""What one device can do, how mixed fleets are made of devices, and how long a piece of work takes on one.

``schema`` says what a profile holds, ``presets`` loads one, ``fleet`` hands devices to clients, ``flops`` counts the
work of a
training step and ``predict`` turns work into seconds. Nothing here imports torch before ``flops`` is asked to count.
"""
