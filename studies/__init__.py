"""Long experiments as scripts: `python -m studies.NAME` writes results/NAME.csv and results/NAME.json."""
