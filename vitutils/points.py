"""The command `python -m vitutils.points FOLDER --out DIR`: train a net on a folder of meshes or point clouds."""

if __name__ == "__main__":
    from vitutils.cli.points import main

    main()
