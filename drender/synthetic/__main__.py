from .. import cli
from .making import main

if __name__ == "__main__":
    cli.run(main)
