"""This package inside others; each module needs the one it is named after."""
