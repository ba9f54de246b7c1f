"""The life of one finetune from the customer's side: started once, followed to its end, explained in words."""
