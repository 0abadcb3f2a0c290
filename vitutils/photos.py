"""The command `python -m vitutils.photos FOLDER --out DIR`: from a folder of your own photos to a model.

The code is in `vitutils.cli.photos`; `python -m vitutils.predict` uses the model.
"""

if __name__ == "__main__":
    from vitutils.cli.photos import main

    main()
