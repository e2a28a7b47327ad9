"""How the embedded model is made: vision tower, then base, then twig. Each resumes from its checkpoint."""
