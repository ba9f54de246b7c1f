"""The provider's side of the contract: an HTTP app over folders, and a worker process that trains."""
