"""`python -m ray_mlc`."""

from ray_mlc.cli import main

if __name__ == "__main__":
    main()
