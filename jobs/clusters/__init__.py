"""Deals with clusters elsewhere and with this machine: submission, packages, checks of nodes, dashboards, doctor; no rendering."""
