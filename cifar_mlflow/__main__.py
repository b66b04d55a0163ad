"""Start the command line."""

import signal


def main() -> None:
    """Import the command line and run it; Ctrl-C before or after that leaves no traceback."""
    # A job in the background of a shell script ignores SIGINT from its start, and continues to do so.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cifar_mlflow.cli import main as command_line

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command_line(prog_name="cifar-mlflow")
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # libraries still clean up when the interpreter ends


if __name__ == "__main__":
    main()
