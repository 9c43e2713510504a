"""The subcommands of `saqrl`: words in, words out. One module each, with `main(arguments)`."""
