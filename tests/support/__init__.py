"""What several test folders share and no fixture is: servers, proxies."""
