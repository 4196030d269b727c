"""What holds for all tests."""

from hypothesis import settings

# A property holds or does not; how long an example takes says something of the machine.
settings.register_profile("podsvid", deadline=None)
settings.load_profile("podsvid")
