"""What a real engine did: our torch engine, replay against a server, comparison with the prediction."""
