"""The command `python -m vitutils.predict DIR PHOTO...`: what a model that `vitutils.photos` wrote sees in photos."""

if __name__ == "__main__":
    from vitutils.cli.predict import main

    main()
