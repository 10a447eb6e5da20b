"""What others would write, each a module or an app that its usual server runs."""
