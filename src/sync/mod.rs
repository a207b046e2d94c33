//! From the store to DynamoDB.
