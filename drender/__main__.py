"""`python -m drender` is the installed command `drender`."""

from drender.commands.main import run

if __name__ == "__main__":
    run()
