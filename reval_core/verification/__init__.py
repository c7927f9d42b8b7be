"""Judging responses: what is claimed, what is said of it, and by which rules."""

from reval_core.verification.claims import Claim, GoldMode, Judgement, Verdict
from reval_core.verification.verifier import VERIFIER_VERSION, Verifier
from reval_core.verification.workers import VerifierUnavailable

__all__ = ["VERIFIER_VERSION", "Claim", "GoldMode", "Judgement", "Verdict", "Verifier", "VerifierUnavailable"]
