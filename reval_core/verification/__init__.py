"""Verification: decides whether the answer of a response is correct, and maps verdicts to rewards."""

from reval_core.verification.claims import Claim, GoldMode, Judgement, Verdict
from reval_core.verification.verifier import VERIFIER_VERSION, Verifier
from reval_core.verification.workers import VerifierUnavailable

__all__ = ["VERIFIER_VERSION", "Claim", "GoldMode", "Judgement", "Verdict", "Verifier", "VerifierUnavailable"]
