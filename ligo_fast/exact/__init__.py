"""Is the function kept? The rules of exactness, and the certificate that runs both models."""
