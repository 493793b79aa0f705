"""Makes datasets of control maps alone, of the pictures that a manifest names; nothing is rendered."""
