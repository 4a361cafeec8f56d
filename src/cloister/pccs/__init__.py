"""A provisioning certificate caching service: the PCS API, version 4, served by us."""
