"""Audits golds and verification rules: rewritings that must be accepted, mutants that must be rejected."""
