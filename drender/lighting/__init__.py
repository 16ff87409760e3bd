"""lighting"""
