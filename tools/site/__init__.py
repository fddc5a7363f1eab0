"""Static pages of the course for any web host: `make site`."""
