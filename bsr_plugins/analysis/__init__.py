"""What the figures of the papers need. Needs matplotlib and scikit-learn: `pip install "bsr-plugins[analysis]"`."""
