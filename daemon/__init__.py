"""The service: configuration, the inspection loop, the ledger and the line's MQTT side. Read `loop.py` first."""
