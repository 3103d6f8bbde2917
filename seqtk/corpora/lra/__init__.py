"""The sets of the Long Range Arena: generators and drawing."""
