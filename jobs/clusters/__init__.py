"""Handles clusters elsewhere and this machine: submission, packages, checks of nodes, dashboards, doctor; renders nothing."""
