"""Any module seen as neurons with roles; modules only."""
